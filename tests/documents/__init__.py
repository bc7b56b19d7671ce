"""Every command of the documents, by kind, each kind run by a test."""
