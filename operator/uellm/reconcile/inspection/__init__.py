"""Looks a service's model up before any pod with a GPU exists, by a small pod in the service's namespace.

question     what is asked, and what the answer depends on. Pure
pod          the manifest of the inspection pod. Pure
pod_trouble  what an inspection pod waits for, or how it ended, in the kubelet's words. Pure
steps        what to do next, and what the condition ModelAccessible says meanwhile. Pure
kept_facts   the answer as a ConfigMap. Pure
inspections  carries the steps out
"""
