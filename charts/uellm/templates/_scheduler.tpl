{{- define "uellm.schedulerConfiguration" -}}
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection:
  leaderElect: {{ gt (int .Values.scheduler.replicas) 1 }}
  resourceName: uellm-scheduler
  resourceNamespace: {{ .Release.Namespace }}
# Above a hundred nodes kube-scheduler would look at a sample, which may miss the few that fit.
percentageOfNodesToScore: 100
profiles:
  - schedulerName: uellm-scheduler
extenders:
  - urlPrefix: http://127.0.0.1:8888/
    filterVerb: filter
    prioritizeVerb: prioritize
    weight: {{ .Values.scheduler.extenderWeight }}
    httpTimeout: 5s
    nodeCacheCapable: true
    # A pod that nobody could check must wait, not land anywhere.
    ignorable: false
    managedResources:
      {{- range .Values.scheduler.managedResources }}
      - name: {{ . }}
        ignoredByScheduler: false
      {{- end }}
{{- end -}}

{{- define "uellm.probeCommand" -}}
{{- list "python3" "-c" (printf "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8888/%s', timeout=8)" .) | toJson -}}
{{- end -}}

{{- /* A path that kube-scheduler answers: before 1.31 it has neither /livez nor /readyz. Of (root, path). */ -}}
{{- define "uellm.schedulerProbe" -}}
{{- $tag := regexFind ":v[0-9]+\\.[0-9]+\\.[0-9]+" (include "uellm.kubeSchedulerImage" (index . 0)) | trimPrefix ":" }}
{{- ternary "/healthz" (index . 1) (semverCompare "<1.31.0-0" ($tag | default (index . 0).Capabilities.KubeVersion.Version)) }}
{{- end }}
