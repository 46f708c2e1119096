# frozen_string_literal: true

# A logger as callers pass it: it knows `info` and `error`, each with one line, and nothing else.
class RecordingLogger
  attr_reader :lines

  def initialize
    @lines = []
  end

  def info(line)
    @lines << [:info, line]
  end

  def error(line)
    @lines << [:error, line]
  end

  # @return [Array<String>]
  def infos
    @lines.filter_map { |level, line| line if level == :info }
  end

  # @return [Array<String>]
  def errors
    @lines.filter_map { |level, line| line if level == :error }
  end
end
