#!/bin/bash
# Create an API key that may use the listings' indices and nothing else, and print it as a line of .env.
# Their names begin with the alias (LENS_ALIAS, "listings"): the indices themselves, the records in listings.builds and
# listings.loads, and the aliases, which move. To "monitor" the cluster is to see its health, and whether a merge has ended.
set -euo pipefail

password=$(cat /run/secrets/elastic_password)
answer=$(
    curl --silent --show-error --fail-with-body --user "elastic:$password" \
        --header 'Content-Type: application/json' http://127.0.0.1:9200/_security/api_key --data '{
            "name": "lens",
            "role_descriptors": {
                "lens": {
                    "cluster": ["monitor"],
                    "indices": [{"names": ["listings*"], "privileges": ["all"]}]
                }
            }
        }'
) || { echo "no API key: $answer" >&2; exit 1; }
key=$(sed -n 's/.*"encoded" *: *"\([^"]*\)".*/\1/p' <<<"$answer")
[ -n "$key" ] || { echo "no API key in the answer" >&2; exit 1; }
echo "LENS_ELASTICSEARCH_API_KEY=$key"
