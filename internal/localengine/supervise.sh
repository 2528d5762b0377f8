# The leader of a job's session; see the package comment. Arguments: directory with what is known of the job, its time
# limit in seconds (0: none), seconds between SIGTERM and SIGKILL, folder, standard output, standard error.
set -u
state=$1 limit=$2 grace=$3 folder=$4 out=$5 err=$6

mkdir "$state/claim" || exit 1

# Fields after the name, which may hold anything. The 20th is the start time (proc(5)).
stat=$(</proc/$$/stat)
read -r -a fields <<<"${stat##*) }"
boot=$(</proc/sys/kernel/random/boot_id)
printf '%s %s %s\n' $$ "${fields[19]}" "$boot" >"$state/process.new" || exit 1
mv "$state/process.new" "$state/process" || exit 1
exec 3>&- # tells the engine that the job is on its way

# The signal that ends the job reaches this shell too, which has to see what becomes of the job. Programs that it starts
# do not inherit this.
trap : TERM INT HUP

finish() {
	printf '%s\n' "$1" >"$state/exit.new" && mv "$state/exit.new" "$state/exit"
	kill -KILL -- "-$$" # what the script has left behind, and this shell
}

cd -- "$folder" || finish 1
"$BASH" --login "$state/script" </dev/null >"$out" 2>"$err" &
job=$!

# pause waits so many seconds at most. It fails when the job has ended.
pause() {
	local until=$((SECONDS + $1)) timer
	while ((SECONDS < until)); do
		sleep $((until - SECONDS)) </dev/null >/dev/null 2>&1 &
		timer=$!
		# bash forgets jobs that have ended when it starts another one, and would wait for the timer alone.
		kill -0 "$job" 2>/dev/null || {
			kill "$timer" 2>/dev/null
			return 1
		}
		wait -n "$job" "$timer"
		kill "$timer" 2>/dev/null
		kill -0 "$job" 2>/dev/null || return 1
	done
}

if ((limit > 0)) && pause "$limit"; then
	: >"$state/expired"
	kill -TERM -- "-$$"
	pause "$grace" && kill -KILL -- "-$$"
fi
while kill -0 "$job" 2>/dev/null; do
	wait "$job"
done
wait "$job"
finish $?
