"""Dictionaries as other toolkits store them: read, checked, and written."""
