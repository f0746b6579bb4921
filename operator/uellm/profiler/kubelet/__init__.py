"""The kubelet's APIs for device plugins (v1beta1), DRA drivers (v1), their registration, and PodResources (v1).

The `.proto` files are excerpts of k8s.io/kubelet (Apache-2.0): what UELLM uses, with packages, names and field numbers
unchanged, so that every kubelet speaks with them. `*_pb2*` files are generated; after a change of a `.proto` file:

    cd operator && uv run --no-project --python 3.11 --with grpcio-tools==1.74.0 --with setuptools \
        python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. uellm/profiler/kubelet/*.proto

The generator is the oldest version that `pyproject.toml` allows at run time (grpcio 1.74, protobuf 6.31.1), because
generated code refuses a run time older than itself and works with every newer one up to the next major version.
"""
