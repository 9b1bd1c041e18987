# A node of a mesh, from pillar `meshd` (see pillar.example in this directory).
{% set meshd = pillar['meshd'] %}
{% set directory = meshd.get('directory', '/etc/meshd') %}
{% set user = meshd.get('user', 'meshd') %}
{% set programs = meshd.get('programs', {'meshd': '/usr/sbin/meshd', 'meshctl': '/usr/bin/meshctl'}) %}

{{ directory }}:
  file.directory:
    - user: {{ user }}
    - mode: '0755'

{{ directory }}/meshd.toml:
  file.managed:
    - source: salt://meshd/meshd.toml.jinja
    - template: jinja
    - user: {{ user }}
    - mode: '0644'
    - check_cmd: {{ programs.meshd }} --check-config --config
    - require:
      - file: {{ directory }}

# The private keys are made here and stay here. What is to be signed lies in node.request.
{{ directory }}/identity.key:
  cmd.run:
    - name: {{ programs.meshctl }} request --node {{ meshd.node }} --dir {{ directory }}{% for endpoint in meshd.get('endpoints', []) %} --endpoint {{ endpoint }}{% endfor %} > {{ directory }}/node.request
    - creates: {{ directory }}/identity.key
    - require:
      - file: {{ directory }}
{% if meshd.get('certificate') %}

{{ directory }}/node.cert:
  file.managed:
    - contents_pillar: meshd:certificate
    - user: {{ user }}
    - mode: '0644'
    # The daemon renews it: what is there is not put back.
    - replace: false
    - require:
      - file: {{ directory }}
{% if meshd.get('manage_service', True) %}

meshd:
  service.running:
    - enable: true
    - reload: true
    - watch:
      - file: {{ directory }}/meshd.toml
    - require:
      - file: {{ directory }}/node.cert
{% endif %}
{% endif %}
