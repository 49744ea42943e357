"""The edges both backends share: settings, logging, embedded database, fast exit, the master of several workers."""
