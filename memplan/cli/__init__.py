"""click commands, one file a command: parse -> call -> render."""
