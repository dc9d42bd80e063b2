"""Everything Weightsmith does, without a page: the command line and the page are thin doors to it."""

__version__ = "0.1.0"
