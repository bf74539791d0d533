"""What a diagnosis found, for people and for programs: JSON, tables, pictures and one HTML page."""
