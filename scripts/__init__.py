"""Thin command lines and two shell scripts."""
