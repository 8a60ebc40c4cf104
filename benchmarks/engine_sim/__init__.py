"""A discrete-event model of engines with continuous batching, on a fake clock: what a concurrency controller is tried on.

`workload` says what is asked, `engine` how long it takes, `world` keeps the time, `client` sends as the runner does,
`scenarios` puts them together, `oracle` finds the best fixed limit, and `score` says how far a controller is from it.
"""
