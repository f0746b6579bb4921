"""Small pods of ours in a service's namespace, which do what the operator has no right to, and serve an answer.

hub_access  what a pod needs to ask a hub: the engine's variables, its token, its certificates. Pure
manifest    the manifest of such a pod: no rights, no GPU, Pod Security `restricted`. Pure
trouble     what it waits for, or how it ended, in the kubelet's words. Pure
steps       whether to make one, ask it or delete it. Pure
"""
