"""Encoders side by side on search sessions: how well they rank what was shown, and what they cost."""
