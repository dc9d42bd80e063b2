"""Rows from files of any kind: what a file is, how it writes letters, and its rows, with every fault named."""
