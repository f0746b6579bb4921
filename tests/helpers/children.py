"""Parts of a service's children."""

from __future__ import annotations

from uellm.reconcile.children import Images

IMAGES = Images("engine:1", "sidecar:1", "launcher:1")


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def pod_template(made):
    return made["Deployment"]["spec"]["template"]


def pod(made):
    return pod_template(made)["spec"]


def containers(made):
    spec = pod(made)
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


def environment(container):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def mebibytes(quantity):
    return int(quantity.removesuffix("Mi"))
