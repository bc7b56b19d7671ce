"""Four small generated tasks that are answered with text; ``scripts/generate_mini_text.py`` wrote their files."""

from pathlib import Path

MINI_TEXT_FOLDER = Path(__file__).parent

# A sentence as JSON, the denial of a sentence, a sum in steps, a question as SQL.
MINI_TEXT = ("mini-json", "mini-denial", "mini-steps", "mini-sql")
