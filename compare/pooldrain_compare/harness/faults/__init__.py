"""What can befall a database server, and what does it: a proxy in the way, and servers of our own to hurt."""
