"""Looks a service's model up before any pod with a GPU exists, by a small pod in the service's namespace.

question     what is asked, and what the answer depends on. Pure
pod          the manifest of the inspection pod. Pure
model_state  what is known of the model: the condition ModelAccessible. Pure
steps        what is said while it is looked up. Pure
kept_facts   the answer as a ConfigMap. Pure
inspections  carries the steps out
"""
