"""uniap-compiler: placeholder docstring, replaced below."""
