// From runs to curves: running sums of bytes and seconds, then mean and spread over the seeds.

// A run's rounds with the sums so far, from the base model (round 0) on.
function walk(run) {
  let [up, down, seconds] = [0, 0, 0];
  const steps = [{ ...run.base, round: 0, up, down, seconds }];
  for (const record of run.rounds) {
    up += record.up;
    down += record.down;
    seconds += record.seconds.train + record.seconds.encode + record.seconds.aggregate;
    steps.push({ ...record, up, down, seconds });
  }
  return steps;
}

function mean(numbers) {
  return numbers.reduce((sum, n) => sum + n, 0) / numbers.length;
}

// The sample standard deviation; null for one number.
function spread(numbers) {
  if (numbers.length < 2) return null;
  const centre = mean(numbers);
  return Math.sqrt(numbers.reduce((sum, n) => sum + (n - centre) ** 2, 0) / (numbers.length - 1));
}

// The rounds in which every run was measured, each coordinate a mean over the runs.
function pointsOf(runs, metric) {
  const walks = runs.map(walk);
  const length = Math.min(...walks.map((steps) => steps.length));
  const points = [];
  for (let n = 0; walks.length > 0 && n < length; n++) {
    const steps = walks.map((steps) => steps[n]);
    const values = steps.map((step) => step[metric]);
    if (values.some((value) => value === null || value === undefined)) continue;
    points.push({
      round: steps[0].round,
      up: mean(steps.map((step) => step.up)),
      down: mean(steps.map((step) => step.down)),
      seconds: mean(steps.map((step) => step.seconds)),
      value: mean(values),
      spread: spread(values),
    });
  }
  return points;
}

// A method's curve: the mean of the runs that finished, and every failed run by itself.
function curveOf(method, metric) {
  const finished = method.runs.filter((run) => run.failed === null);
  const failed = method.runs.filter((run) => run.failed !== null);
  return {
    label: method.label,
    points: pointsOf(finished, metric),
    failures: failed.map((run) => pointsOf([run], metric)).filter((points) => points.length > 0),
  };
}
