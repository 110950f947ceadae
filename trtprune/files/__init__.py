"""Files of unknown origin: bounded reading, JSON that is one plain object, files of JSON lines."""
