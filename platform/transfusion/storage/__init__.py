"""Bytes at names, on local disk or S3, behind one small interface."""
