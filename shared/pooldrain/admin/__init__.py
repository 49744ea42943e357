"""The admin listener: what a person on call, and Prometheus, may look at, in every phase and whatever the threads do.

It is a process of its own, forked before anything else is bound (`process`). Each process that serves answers it with
one snapshot per question (`reporter`); it keeps the last numbers of those that ended (`gathering`), and shows all of
them over HTTP (`server`), as Prometheus' text (`exposition`), and as a page.
"""
