"""What requests and answers mean: read once, changed as little as can be, counted on the way. Pure: no I/O, no clock.

routes      which of vLLM's routes are work for the GPU, and which are for its operator alone
call        a request that was read: how it goes upstream, and what predictor and scheduler need of it
read        from a request to a Call
prompt      how long a prompt is, and what it has in common with others
slo         targets and tenant, from headers
keys        API keys
events      server-sent events: splitting and counting without parsing, the final usage
strip       takes the usage event that only we asked for out of a stream again
aggregate   an answer that was not asked for as a stream, put together from one
shape       what such an answer of this engine looks like, learned from the engine's own
"""
