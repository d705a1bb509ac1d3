"""The pages of docs/ that are written by commands (`make docs`), and what their tests share."""
