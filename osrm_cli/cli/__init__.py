"""The commands: parse options, call one function, print the result."""
