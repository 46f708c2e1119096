# frozen_string_literal: true

desc "The specs with further servers and another Ruby (bin/lane), as a table (40 minutes); their output goes to tmp/"
task lanes: :compile do
  rows = %w[rails redis-7.0 valkey-8 valkey-9 ruby-3.4].map do |name|
    log = "tmp/#{name}.log"
    status = system("bin/lane", name, out: log, err: %i[child out])
    text = File.read(log, encoding: "UTF-8").scrub
    row = [name, text[/^\d+ examples?, .*/] || "no examples (see #{log})", text[/^lane: #{name}: (.*)/, 1]]
    puts row.compact.join(": ")
    [name, status && row[1].match?(/\A[1-9]\d* examples?, 0 failures/)]
  end
  failed = rows.reject(&:last).map(&:first)
  abort "failed: #{failed.join(", ")}" if failed.any?
end
