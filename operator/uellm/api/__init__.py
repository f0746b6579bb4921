"""The resources of group `uellm.io` as pydantic types, from which the CRDs are rendered, and other shared documents.

llmservice, llmservice_status, gpunodeprofile, gpunodeclass   the resources; engine, slo, conditions are their parts
sidecar_document                                sidecar.yaml: the operator writes it, the sidecar reads it
attainment_report, running_report               what a sidecar reports to the operator
replica_load                                    what a sidecar reports to the gateway
names                                           labels and annotations that several programs share
scalars, base                                   durations, quantities, validation rules
documents, crd                                  parsing; rendering of the CRDs
"""

from uellm.api.documents import parse, parse_node_class, parse_profile, parse_service, read_documents, read_service
from uellm.api.gpunodeclass import GPUNodeClass
from uellm.api.gpunodeprofile import GPUNodeProfile
from uellm.api.llmservice import LLMService, LLMServiceSpec, Scheduling
from uellm.api.llmservice_status import LLMServiceStatus, PlanStatus
from uellm.api.names import API_VERSION, GROUP, VERSION
from uellm.api.scalars import duration_s, quantity
from uellm.api.slo import ServiceClass, Slo

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "GPUNodeClass",
    "GPUNodeProfile",
    "LLMService",
    "LLMServiceSpec",
    "LLMServiceStatus",
    "PlanStatus",
    "Scheduling",
    "ServiceClass",
    "Slo",
    "duration_s",
    "parse",
    "parse_node_class",
    "parse_profile",
    "parse_service",
    "quantity",
    "read_documents",
    "read_service",
]
