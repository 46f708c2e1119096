# frozen_string_literal: true

module Demo
  # What is printed: plain lines of at most 80 columns, coloured on a terminal.
  class Screen
    COLORS = {red: 31, green: 32, yellow: 33, bold: 1}.freeze
    BAR = 10
    COLUMNS = "%7s  %-18s  %-18s  %6s  %8s  %9s"
    private_constant :COLORS, :BAR, :COLUMNS

    def initialize(out = $stdout)
      @out = out
      @out.sync = true
      @colored = out.tty? && !ENV.key?("NO_COLOR")
    end

    def line(text = "")
      @out.puts(text)
    end

    # Something happened: stands out between the rows of the table.
    def event(text, color)
      text.each_line(chomp: true).with_index { |part, index| line(paint("#{index.zero? ? "  >>> " : "      "}#{part}", color)) }
    end

    def header
      line
      line(paint(format(COLUMNS, "time", "A in flight", "B in flight", "queued", "finished", "recovered"), :bold))
    end

    # @param processes [Array<Array(SidekiqProcess, Integer)>] each with its entries in the registry
    def row(time, processes, queued, finished, recovered)
      cells = processes.map { |process, entries| cell(process, entries) }
      line(format(COLUMNS, "#{time.round(1)} s", *cells, queued, finished, recovered))
    end

    def paint(text, color)
      @colored ? "\e[#{COLORS.fetch(color)}m#{text}\e[0m" : text
    end

    private

    def cell(process, entries)
      return entries.zero? ? "dead" : "dead, #{entries} orphans" if process.killed?

      filled = process.capacity.zero? ? 0 : (process.in_flight * BAR / process.capacity.to_f).round.clamp(0, BAR)
      format("%3d/%-3d %s", process.in_flight, process.capacity, "#" * filled + "." * (BAR - filled))
    end
  end
end
