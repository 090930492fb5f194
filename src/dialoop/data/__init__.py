"""Data: read what companies have, clean it, mix it, render it to packed token rows."""
