"""Listings as they happen: kept in a log first, and brought into every index within a moment.

The log makes it safe. An event is kept before an index is asked for, so an index either is there when the event is written to
all that are fed, or is made later, and then replays the log before it goes live.
"""
