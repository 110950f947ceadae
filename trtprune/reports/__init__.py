"""Parts of all reports: tables, figures, statistics, durations, progress of downloads, and the terminal."""
