# frozen_string_literal: true

namespace :bench do
  desc "How late a fiber wakes beside 100 that register, as a table (20 s); fails where that is more than the goals"
  task reactor: :compile do
    # async is a lane's.
    sh "bin/lane", "sidekiq-7.3", RbConfig.ruby, "bench/reactor.rb", verbose: false
  end
end
