# frozen_string_literal: true

require "rack/mock"
require "sidekiq/api"
require "uri"

# Sidekiq's own pages, rendered by the real Sidekiq::Web of whichever major is loaded, and what they read of a job.
module SidekiqWeb
  # @return [Integer] the HTTP status of the page of the dead set, with every job of it
  def page_of_the_dead_set
    page("/morgue?count=100")
  end

  # @return [Array<Integer>] the HTTP statuses of the page of each dead job; it redirects where the job has no jid
  def pages_of_dead_jobs
    Sidekiq::DeadSet.new.map { |job| page("/morgue/#{URI.encode_uri_component("#{job.score}-#{job.jid}")}") }
  end

  # @return [Array<Hash>] what the pages read of each dead job, read by Sidekiq's own methods
  def shown_dead_jobs
    Sidekiq::DeadSet.new.map do |job|
      %i[display_class display_args tags queue jid at created_at enqueued_at latency error_backtrace bid error?]
        .to_h { |name| [name, job.public_send(name)] }.merge(job.item.slice("error_class", "error_message"))
    end
  end

  private

  def page(path)
    # The warnings of these pages are not ours.
    verbose, $VERBOSE = $VERBOSE, nil
    require "sidekiq/web"
    # Sidekiq 7 wants a session.
    Sidekiq::Web.new.call(Rack::MockRequest.env_for(path, "rack.session" => {})).first
  ensure
    $VERBOSE = verbose
  end
end

RSpec.configure { |config| config.include SidekiqWeb }
