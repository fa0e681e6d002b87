"""Tools that read an app and change nothing but the file they are told to."""
