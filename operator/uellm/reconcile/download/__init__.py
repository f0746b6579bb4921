"""Copies a service's model to a volume before any engine starts, by a small pod in the service's namespace.

order            what is copied where, and what the copy depends on. Pure
claim            the claim that the operator makes. Pure
pod              the manifest of the download pod. Pure
download_state   how far the copy is: what it adds to the condition ModelAccessible. Pure
steps            what is said while it is copied. Pure
needed           which copies stay when others make room. Pure
kept_copy        that the copy is complete, as a ConfigMap. Pure
downloads        carries the steps out
"""
