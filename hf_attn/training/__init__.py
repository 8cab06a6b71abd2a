"""Training a translator: sentence pairs, batches, schedule, averages, scores, report. Never ships to the Hub."""
