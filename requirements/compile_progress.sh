#!/usr/bin/env bash
# Reads what `pip install -v` says while ninja compiles, and tells what is done and how long the rest will take.
count='^ *\[([0-9]+)/([0-9]+)\]'
start=''
while IFS= read -r line; do
    if [[ $line =~ $count ]]; then
        done=${BASH_REMATCH[1]} all=${BASH_REMATCH[2]}
        if [ -z "$start" ]; then
            start=$SECONDS first=$done
            echo "  compiled [$done/$all]"
        else
            left=$(((SECONDS - start) * (all - done) / (done > first ? done - first : 1)))
            echo "  compiled [$done/$all], $((left / 60)) min $((left % 60)) s left"
        fi
    elif [[ $line =~ ^\ *(Collecting|Downloading|Building|Successfully|ERROR|error:|fatal) ]]; then
        echo "$line"
    fi
done
