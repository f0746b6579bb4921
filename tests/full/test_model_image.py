"""A model that is an image: real kubelets mount it into the pod that looks it up, and into the real engine's."""

from __future__ import annotations

import pytest

from uellm_devcluster import import_images, tinymodel
from uellm_devcluster.archive import write_image
from uellm_devcluster.demo import traffic

IMAGE = "models.local:5000/team/tiny:V1_float32"


@pytest.fixture
def image(installed, tmp_path):
    """The demo's model in a directory of an image, on every node."""
    tinymodel.make(tmp_path / "tiny")
    files = {f"models/tiny/{each.name}": each.read_bytes() for each in (tmp_path / "tiny").iterdir()}
    write_image(tmp_path / "image.tar", IMAGE, files, entrypoint=["/none"])
    import_images([tmp_path / "image.tar"])
    return IMAGE


def test_an_image_is_looked_up_and_served_from_its_volume(image, new_service):
    own = new_service()
    spec = own.document["spec"]
    spec["model"] = {"uri": f"oci://{image}#models/tiny", "dtype": "float32", "maxModelLen": 2048}
    template = spec["template"]["spec"]
    template["volumes"] = [each for each in template["volumes"] if each["name"] != "models"]
    (engine,) = [each for each in template["containers"] if each["name"] == "engine"]
    engine["volumeMounts"] = [each for each in engine["volumeMounts"] if each["name"] != "models"]
    with own.applied():
        own.wait_ready(1)
        assert own.condition("ModelAccessible")["reason"] == "Found"
        (pod,) = own.pods()
        assert next(each["image"]["reference"] for each in pod["spec"]["volumes"] if each["name"] == "model") == image
        with traffic.port_forward(own.shell, f"service/{own.name}", 80) as port:
            assert traffic.stream_chat(port, own.name, "Tell me about placement.", max_tokens=8).text
