"""One endpoint for all LLMServices: it sends each request to a replica of the service whose model the request names.

process       assembles the parts
door          one request from its arrival to its answer
forwarding    a request on its way to a replica: choice, retries, the fast path of the answer
attempt       a request at one replica after the other: what their answers say of them
model_field   which model a body names: pure
catalog       which service a name belongs to: pure
fleet         the services and their replicas as they are now
replicas      the replicas of one service, their connections and loads
loads         the load of a replica, as its sidecar tells it
routed        what the choice of a replica depends on: pure
retry_budget  how many requests may be sent twice: pure
holding       requests of services without a replica
kube_view     services and replicas as the cluster has them
static_view   services and replicas from a file
documents     what is read of LLMServices and EndpointSlices: pure
management    the metrics port
telemetry     metrics and access log
tls           the certificate of the listener
"""
