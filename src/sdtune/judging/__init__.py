"""How figures become an answer: what is judged (scores), how it is measured (figures), what it means (verdicts)."""
