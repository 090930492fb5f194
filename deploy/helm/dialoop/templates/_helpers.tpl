{{- define "dialoop.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dialoop.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dialoop.labels" -}}
{{ include "dialoop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The most gateways that there may be: each keeps its part of a limit while Redis is away. */}}
{{- define "dialoop.most" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- end -}}

{{/* The job, with the number of gateways unless it is given. */}}
{{- define "dialoop.job" -}}
{{- $database := .Values.job.database | default "sqlite" -}}
{{- if and (gt (int (include "dialoop.most" .)) 1) (hasPrefix "sqlite" $database) -}}
{{- fail "job.database: several gateways need PostgreSQL; a SQLite file is one pod's own" -}}
{{- end -}}
{{- toYaml (merge (deepCopy .Values.job) (dict "num_gateways" (int (include "dialoop.most" .)))) -}}
{{- end -}}

{{- define "dialoop.scheme" -}}
{{- ternary "HTTPS" "HTTP" (hasKey .Values.job "tls_certificate") -}}
{{- end -}}

{{/* Seconds that an answer may take. */}}
{{- define "dialoop.request" -}}
{{- dig "patience" "request_s" 600 .Values.job -}}
{{- end -}}
