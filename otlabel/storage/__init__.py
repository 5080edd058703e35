"""Files that are whole or absent: how they are written, which may be written, and the layout of label files."""
