"""What is run by hand or by MkDocs: pictures, generated pages, hooks of the site."""
