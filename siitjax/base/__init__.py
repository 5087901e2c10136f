"""What every room uses and no science is in: errors for users, command lines, files, exact shares, versions.

It comes first in the list of rooms (see tests/test_rooms.py) and knows nothing of models or cases: a room that needs an
error of one line, or a file that is written whole, needs no other room for it.
"""
