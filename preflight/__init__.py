"""What a run plans, checks and foretells before its first phase. Nothing here decides a number, so
older models stay valid when these files change.
"""
