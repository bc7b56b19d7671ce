"""Side-by-side timings against peers; one script per question, results as JSON in ``results/``."""
