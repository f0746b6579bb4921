"""The number of replicas over a day: policies compared on a model of a replica that is fast enough for a whole day."""
