{{/* The name of what belongs to this release: `uellm`, or `<release>-uellm` where the release is called otherwise. */}}
{{- define "uellm.fullname" -}}
{{- if contains "uellm" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-uellm" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of an object. Takes (dict "root" $ "component" "operator"). */}}
{{- define "uellm.labels" -}}
{{ include "uellm.selector" . }}
app.kubernetes.io/part-of: uellm
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels by which a Deployment or DaemonSet finds its pods: they can never be changed. */}}
{{- define "uellm.selector" -}}
app.kubernetes.io/name: uellm-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* An image of ours. Takes (dict "root" $ "role" "operator"). */}}
{{- define "uellm.image" -}}
{{- $images := .root.Values.images -}}
{{- $own := printf "%s/%s:%s" $images.registry .role ($images.tag | default .root.Chart.AppVersion) -}}
{{- index $images .role | default $own -}}
{{- end -}}

{{/* kube-scheduler of the cluster's own version: v1.34.2-gke.100 runs v1.34.2. */}}
{{- define "uellm.kubeSchedulerImage" -}}
{{- $version := regexFind "^v[0-9]+\\.[0-9]+\\.[0-9]+" .Capabilities.KubeVersion.Version -}}
{{- if not (or .Values.images.kubeScheduler $version) }}
{{- fail (printf "the cluster's version is %s, which names no image of kube-scheduler: set images.kubeScheduler" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- .Values.images.kubeScheduler | default (printf "registry.k8s.io/kube-scheduler:%s" $version) -}}
{{- end -}}

{{/* Not empty where the release has an operator; without one it is a gateway alone. Values of a former release have no
such key. */}}
{{- define "uellm.operates" -}}
{{- if dig "enabled" true .Values.operator -}}true{{- end -}}
{{- end -}}

{{/* What the operator is told of gateways, as JSON: null where one serves every namespace. */}}
{{- define "uellm.gatewayNamespaces" -}}
{{- $others := dig "gatewayNamespaces" list .Values.operator -}}
{{- if not .Values.gateway.enabled -}}
{{- $others | toJson -}}
{{- else if .Values.gateway.namespaces -}}
{{- concat .Values.gateway.namespaces $others | uniq | toJson -}}
{{- else -}}
null
{{- end -}}
{{- end -}}

{{- define "uellm.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Not empty where pods measure GPUs: without profilers nobody would read what they find. */}}
{{- define "uellm.measures" -}}
{{- if and (include "uellm.operates" .) .Values.measuring.enabled .Values.profiler.enabled -}}true{{- end -}}
{{- end -}}

{{/* Their PriorityClass. Kubernetes lets nobody change the value of one, so another value makes another class. */}}
{{- define "uellm.measuringPriorityClass" -}}
{{- $value := int .Values.measuring.priority -}}
{{- include "uellm.fullname" . }}-measuring{{ if ne $value -1000 }}{{ $value }}{{ end -}}
{{- end -}}

{{/* How they do it, as the operator reads it. */}}
{{- define "uellm.measuring" -}}
{{- $own := pick .Values.measuring "image" "directory" "nodeSelector" "runtimeClassName" "resources" "env" "volumes" "volumeMounts" -}}
{{- $where := dict "namespace" (include "uellm.profilerNamespace" .) "priorityClassName" (include "uellm.measuringPriorityClass" .) -}}
{{- merge $where $own (dict "pullSecrets" .Values.images.pullSecrets) | toJson -}}
{{- end -}}

{{- define "uellm.profilerNamespace" -}}
{{- .Values.profiler.namespace.name | default (printf "%s-profiler" .Release.Namespace) -}}
{{- end -}}

{{/* Where and how a pod runs. Takes the component's values. */}}
{{- define "uellm.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Pod Security `restricted`, pod and container. */}}
{{- define "uellm.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "uellm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Of the DaemonSets: the kubelet's sockets belong to root. Nothing else is asked for. */}}
{{- define "uellm.rootPodSecurity" -}}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Names of the described nodes whose GPUs the DRA driver hands out, as JSON: each node does it in one way. */}}
{{- define "uellm.draNodes" -}}
{{- $names := list -}}
{{- if .Values.simulated.dra.enabled -}}
{{- $names = .Values.simulated.dra.nodes | default (keys .Values.simulated.nodes | sortAlpha) -}}
{{- end -}}
{{- range $names }}{{ if not (hasKey $.Values.simulated.nodes .) }}
{{- fail (printf "simulated.dra.nodes: %s is not among simulated.nodes" .) }}
{{- end }}{{ end -}}
{{- $names | toJson -}}
{{- end -}}

{{/* Names of the other described nodes, as JSON. */}}
{{- define "uellm.pluginNodes" -}}
{{- $dra := include "uellm.draNodes" . | fromJsonArray -}}
{{- $names := list -}}
{{- range keys .Values.simulated.nodes | sortAlpha }}{{ if not (has . $dra) }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- $names | toJson -}}
{{- end -}}

{{/* The hostname labels of the described nodes, as a term of node affinity. */}}
{{- define "uellm.simulatedNodes" -}}
- matchExpressions:
    - key: kubernetes.io/hostname
      operator: In
      values: {{ keys .Values.simulated.nodes | sortAlpha | toJson }}
{{- end -}}

{{/* The terms of the profiler's node affinity: nodes with GPUs, and described ones. */}}
{{- define "uellm.profilerNodes" -}}
{{- $labels := .Values.profiler.nodeLabels }}
{{- if kindIs "invalid" $labels }}{{ $labels = dict "nvidia.com/gpu.present" "true" }}{{ end }}
{{- $given := dict }}
{{- range $name, $value := $labels }}{{ if not (kindIs "invalid" $value) }}{{ $_ := set $given $name $value }}{{ end }}{{ end }}
{{- with $given }}
- matchExpressions:
    {{- range $name, $value := . }}
    - key: {{ $name }}
      operator: In
      values: [{{ $value | quote }}]
    {{- end }}
{{- end }}
{{- if and .Values.simulated.enabled .Values.simulated.nodes }}
{{ include "uellm.simulatedNodes" . }}
{{- end }}
{{- end -}}

{{- /* A container's security context with which root may write what belongs to others, unless it has no capabilities set. */ -}}
{{- define "uellm.ownersOfAll" -}}
{{- $context := deepCopy (. | default dict) }}
{{- with $context.capabilities }}
{{- $_ := set $context "capabilities" (mergeOverwrite (dict "add" (list "DAC_OVERRIDE" "FOWNER")) .) }}
{{- end }}
{{- toYaml $context }}
{{- end }}
