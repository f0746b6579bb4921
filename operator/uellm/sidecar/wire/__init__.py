"""What requests and answers mean: parsed once, changed as little as possible, counted. Pure: no I/O, no clock.

routes      which of vLLM's routes are GPU work, and which are administrative
call        a parsed request: how it is sent, and what predictor and scheduler need of it
read        from a request to a Call
prompt      length of a prompt, and what it shares with others
slo         targets and tenant, from headers
events      server-sent events: splitting and counting without parsing, and the final usage
strip       removes the usage event that only the sidecar asked for
aggregate   a non-streaming answer, assembled from a stream
shape       what this engine's non-streaming answers look like, learned from one of them
"""
